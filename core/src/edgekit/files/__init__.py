"""Files: nothing half-written (`atomic`), hashes (`digests`), strict reading (`foreign`, `reader`), `memory`."""
