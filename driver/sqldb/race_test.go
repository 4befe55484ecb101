//go:build race

package sqldb

// ledgerEvents is fewer here: the race detector makes SQLite, which is compiled
// to Go, more than ten times slower.
const ledgerEvents = 4_000
