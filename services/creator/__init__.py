"""The creator: makes and destroys devices on its host, as it is ordered in the log. Off unless somebody runs it."""
