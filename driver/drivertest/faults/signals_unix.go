//go:build unix

package faults

import "syscall"

// The signals that stop a process, let it go on, and make it say where it is.
const (
	signalStop     = syscall.SIGSTOP
	signalContinue = syscall.SIGCONT
	signalDump     = syscall.SIGQUIT
)
