package calls

import (
	"context"
	"errors"
	"testing"
)

func TestGate(t *testing.T) {
	var g Gate
	if !g.Enter() {
		t.Fatal("a new gate is closed")
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if !g.Close() || g.Close() || g.Enter() {
		t.Error("a closed gate lets somebody in, or closes twice")
	}
	if err := g.Wait(over, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a call under way: %v", err)
	}
	cut := make(chan struct{})
	g.Go(func() { <-cut })
	g.Leave()
	if err := g.Wait(over, func() { close(cut) }); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := g.Wait(context.Background(), nil); err != nil {
		t.Errorf("Wait with nothing under way: %v", err)
	}
}
