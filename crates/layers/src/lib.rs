//! Neural building blocks shared by several models.
