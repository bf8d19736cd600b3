"""What an operator asks of a running or installed appliance."""
