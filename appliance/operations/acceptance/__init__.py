"""The acceptance of an installed appliance, as an accreditor runs it.

A second gateway is started beside the running one: the same code, trust, encoders and routers, on copies of what it
would write, with stand-in model servers on loopback. So every fault can be made without touching a user's request.
"""
