package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, streams{os.Stdin, os.Stdout, os.Stderr}, os.Getenv, os.Args[1:])
	stop()
	os.Exit(code)
}
