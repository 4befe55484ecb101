// Command lint is what `make lint` gives to `go vet -vettool`: the passes of go vet itself, staticcheck's checks, and a few others, each
// of which has found a mistake that a reviewer would want to know of. checks.go lists them.
//
// It is a module of its own, so that the versions and checksums of what it is built of are in its go.mod and go.sum, and not in those of
// the library. The go command keeps what it found in each package, as it keeps what it built.
package main

import "golang.org/x/tools/go/analysis/unitchecker"

func main() { unitchecker.Main(analyzers()...) }
