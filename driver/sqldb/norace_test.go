//go:build !race

package sqldb

const ledgerEvents = 10_000
