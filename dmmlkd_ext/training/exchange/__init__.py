"""The exchange of parameters between neighbours, and between the processes that hold them."""
