//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package sqlite

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
)

// fileLock is a lock between processes, which ends with the process that has it.
// try and unlock are called by one goroutine at a time.
type fileLock struct {
	path string

	mu     sync.Mutex
	file   *os.File
	closed bool
}

// try takes the lock when it is free.
func (l *fileLock) try() (had bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return true, nil // the database says that it is closed
	}
	if l.file == nil {
		if l.file, err = os.OpenFile(l.path, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
			return false, fmt.Errorf("sqlite: the lock between processes: %w", err)
		}
	}
	for {
		err := syscall.Flock(int(l.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case errors.Is(err, syscall.EINTR):
		default: // a file system without locks: SQLite's own are all there is
			return true, nil
		}
	}
}

func (l *fileLock) unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = syscall.Flock(int(l.file.Fd()), syscall.LOCK_UN) // else it ends with the file
	}
}

func (l *fileLock) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
