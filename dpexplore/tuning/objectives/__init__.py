"""What runs minimise: distances between distributions over tokens and over strings."""
