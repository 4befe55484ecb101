//go:build !linux

package setup

import (
	"syscall"
	"time"
)

// userTimeout does nothing: keepalives are what this system has.
func userTimeout(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
