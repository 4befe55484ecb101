// Package guarantees has no code but tests: they put every driver through the
// faults of package driver/drivertest/faults, with real processes and real
// brokers, and write what the ledger counted into docs/guarantees.md and
// docs/killed.md.
//
// `make faults` and `make ledger` are the long forms; a plain go test runs short
// ones.
package guarantees
