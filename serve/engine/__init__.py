"""What stands behind the HTTP routes: requests put into the words of training, and engines that rank them."""
