"""Reading packed datasets: what is stored, and what an item is."""
