"""Makes multi-image questions with a system of agents, and lets a person verify them."""
