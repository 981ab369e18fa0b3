"""One model against numbers: what is asked, in which order, and when it is enough."""
