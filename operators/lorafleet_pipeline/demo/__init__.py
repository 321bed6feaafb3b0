"""`lorafleet demo`: the whole path once, from a dataset to a promoted adapter that answers over REST."""
