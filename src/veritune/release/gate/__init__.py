"""The release gates: a policy's checks over one candidate, and the record that binds exact bytes."""
