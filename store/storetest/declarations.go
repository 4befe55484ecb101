package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

func declared[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	one, two := log(d.Open(t)), log(d.Open(t))
	if all, err := one.Declared(t.Context(), "x.y"); err != nil || len(all) != 0 {
		t.Errorf("nobody has declared anything: %v %v", all, err)
	}
	of := func(channels string, eventType string) driver.Declaration {
		return driver.Declaration{Channel: channels, Type: eventType}
	}
	var all sync.WaitGroup
	for n, l := range []outbox.Log{one, two, one, two} {
		all.Go(func() {
			handled := []driver.Declaration{of("b", "b.two"), of("a", "a.one"), of("a", "a.one"), of("c", fmt.Sprint("c.", n))}
			if all, err := l.Declare(t.Context(), "x.y", handled); err != nil || !slices.Contains(all, handled[3]) {
				t.Errorf("declared %v: %v", all, err)
			}
		})
	}
	all.Wait()
	if _, err := one.Declare(t.Context(), "x.other", []driver.Declaration{of("d", "d.one")}); err != nil {
		t.Fatal(err)
	}
	want := []driver.Declaration{of("a", "a.one"), of("b", "b.two"), of("c", "c.0"), of("c", "c.1"), of("c", "c.2"), of("c", "c.3")}
	if got, err := two.Declared(t.Context(), "x.y"); err != nil || !slices.Equal(got, want) {
		t.Errorf("declared %v: %v", got, err)
	}
	if got, err := one.Declare(t.Context(), "x.y", nil); err != nil || !slices.Equal(got, want) {
		t.Errorf("with nothing to add %v: %v", got, err)
	}
}

func forgottenTypes[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	l := log(d.Open(t))
	begin(t, l, "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a", "b")
	handled := []driver.Declaration{{Channel: "a", Type: "a.one"}, {Channel: "b", Type: "b.one"}, {Channel: "b", Type: "b.two"}}
	if _, err := l.Declare(t.Context(), "x.y", handled); err != nil {
		t.Fatal(err)
	}
	forget := func(eventType string) bool {
		t.Helper()
		known, err := l.ForgetType(t.Context(), "x.y", eventType)
		if err != nil {
			t.Errorf("ForgetType %s: %v", eventType, err)
		}
		return known
	}
	left := func(channel string, want int) {
		t.Helper()
		if progress, err := l.Progress(t.Context(), "x.y", outbox.Parts(channel)); err != nil || len(progress) != want {
			t.Errorf("of channel %s %d positions are left, want %d: %v", channel, len(progress), want, err)
		}
	}
	if forget("unknown") || !forget("b.two") || forget("b.two") {
		t.Error("whether a type was declared is not said")
	}
	left("b", outbox.Slots)
	leases, err := l.Acquire(t.Context(), "subscription:x.y", "one", []string{outbox.Part{Channel: "b", Slot: 63}.Name()}, 1, time.Minute)
	if err != nil || len(leases) != 1 {
		t.Fatalf("Acquire: %v %v", leases, err)
	}
	if _, err := l.ForgetType(t.Context(), "x.y", "b.one"); !errors.Is(err, driver.ErrInUse) {
		t.Errorf("while an instance handles it: %v", err)
	}
	left("b", outbox.Slots)
	if got, err := l.Declared(t.Context(), "x.y"); err != nil || !slices.Equal(got, handled[:2]) {
		t.Errorf("declared %v: %v", got, err)
	}
	if err := l.Leave(t.Context(), "subscription:x.y", "one"); err != nil {
		t.Fatal(err)
	}
	if !forget("b.one") {
		t.Error("b.one was not declared")
	}
	left("b", 0)
	left("a", outbox.Slots)
	if got, err := l.Declared(t.Context(), "x.y"); err != nil || !slices.Equal(got, handled[:1]) {
		t.Errorf("declared %v: %v", got, err)
	}
}
