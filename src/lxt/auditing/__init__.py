"""The parts of an audit: what is looked at, and what is said of it. `lxt.audit` runs them."""
