"""Node devices as others know them: libvirt's XML, read and written, and trees as virsh draws them."""
