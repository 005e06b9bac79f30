"""Files: nothing half-written (`atomic`), hashes (`digests`), and strict reading of foreign ones (`foreign`)."""
