"""A report as text or JSON. Renderers know the report's type only to type checkers; its methods call them."""
