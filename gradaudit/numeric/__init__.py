"""From losses to derivatives: values at points, a ladder of steps, a weighted fit, a value with an error bound."""
