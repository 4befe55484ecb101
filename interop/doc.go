// Package interop has the tests in which Go and TypeScript talk to each other over
// real brokers: `make interop` runs them. The TypeScript side is in the folder
// typescript.
//
// Nothing is promised here; what is tested is that the wire formats of package
// codec are those of a TypeScript service, both ways.
package interop
