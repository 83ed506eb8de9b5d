"""A real Xen: a guest under QEMU whose domains and PCI devices a poller reports. `python -m tests.xen`."""
