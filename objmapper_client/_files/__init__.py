"""Files on the client's side: atomic writes, and the objects of fsspec."""
