"""The binder: hands devices of its host over to holders, and takes them back. Off unless somebody runs it."""
