"""Instance overlap, matching and the rules of counting; torch-free."""
