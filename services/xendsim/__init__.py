"""A stand-in for xend of Xen 4.4: its sockets, its answers and its faults, before a little hypervisor.

Facts: the protocol as it was seen on, and read in, the genuine xend (docs/xend-sim.md says what is checked how). No
line of it is taken from there.

| module | what |
|---|---|
| `state` | what there is: domains, devices, PCI functions; kept in a file, since guests survive xend |
| `configuring` | configurations in SXP read into domains and devices |
| `hypervisor` | what happens with time: starts, reboots, crashes, slow deaths |
| `hotplug` | devices of domains: added, removed, configured |
| `pictures` | a domain, its devices and the node as xend prints them |
| `calls` | xend's operations by name, the same for both protocols |
| `web` | paths, methods, forms; a request's reply as bytes |
| `rpc` | the `xend.*` methods of XML-RPC |
| `wire` | sockets: framing, sockets that linger, replies that do not come |
| `control` | making things happen: `leasehold xend-sim do` |
| `server` | all of it in one process |

Text is Latin-1 throughout, so that each byte that is sent stays itself.
"""
