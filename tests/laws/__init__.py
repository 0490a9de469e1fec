"""Laws that hold for every transform over every program; both tables are closed."""
