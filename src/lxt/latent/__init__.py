"""Inside the model: relevance and activation of heads, neurons and directions, and what they do."""
