"""Files and what else leaves the process: nothing half-written (`atomic`), hashes (`digests`), strict reading (`foreign`, `reader`), `memory`."""
