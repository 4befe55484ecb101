// Package inbox handles events in one transaction with the record that they
// were handled, so that their effects happen once.
package inbox
