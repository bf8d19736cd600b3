"""What stage 0 and the installed appliance share, in the standard library alone.

These modules import nothing but each other and the standard library. `assemble` joins them into the single file
`stage0.py` that travels with a release; the installed appliance imports the very same modules, so that there is one
reader, one manifest and one installation journal, never two dialects of them.
"""
