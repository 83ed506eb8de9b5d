"""The watcher: what devices this machine has, what it lives on, who is seen using them, and when to look again."""
