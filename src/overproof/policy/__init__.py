"""What may be learned from whom: licences, teachers' terms, obligations, and the gate."""
