//go:build !unix

package faults

import "syscall"

// There is nothing like these here: sending them is an error.
const (
	signalStop     = syscall.Signal(19)
	signalContinue = syscall.Signal(18)
	signalDump     = syscall.Signal(3)
	signalEnd      = syscall.SIGTERM
)
