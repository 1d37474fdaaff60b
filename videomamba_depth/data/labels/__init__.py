"""Labels worked out from a teacher's depth."""
