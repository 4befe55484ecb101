//go:build unix

package faults

import "syscall"

// The signals that stop a process, let it go on, make it say where it is, and ask it
// to end.
const (
	signalStop     = syscall.SIGSTOP
	signalContinue = syscall.SIGCONT
	signalDump     = syscall.SIGQUIT
	signalEnd      = syscall.SIGTERM
)
