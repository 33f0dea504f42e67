"""The pictures of the documentation, one module each with a function ``draw``; drawn anew in every build."""
