-- What an instance knows, as JSON: of each kind of leases how many there are. Nothing where the library before wrote the row.
ALTER TABLE tidings_members ADD COLUMN parts text;
