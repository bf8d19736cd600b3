"""`make demo`, in two halves: outside the sealed room and inside."""
