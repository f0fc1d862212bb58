"""What the server remembers: durable reservations, records of statuses, and the indexes that answer every list."""
