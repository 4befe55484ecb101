package tidings_test

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

type userPayload struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	Name   string `json:"name"`
}

var userCreated = tidings.Define[userPayload]("identity.user.created", 1, tidings.Repeatable)

func BenchmarkFloor(b *testing.B) {
	type env struct {
		id string
		p  userPayload
	}
	var sink string
	h := func(e *env) { sink = e.id }
	p := userPayload{"u-1", "ada@example.com", "Ada Lovelace"}
	b.ReportAllocs()
	for b.Loop() {
		id, _ := uuid.NewV7()
		e := &env{id: id.String(), p: p}
		h(e)
	}
	_ = sink
}

func BenchmarkSync(b *testing.B)      { benchBus(b, true) }
func BenchmarkSyncDedup(b *testing.B) { benchBus(b, false) }

func benchBus(b *testing.B, off bool) {
	bus := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), WithoutDedup: off})
	n := 0
	if err := bus.Module("x").Subscribe("s", nil, userCreated.On(func(_ context.Context, e tidings.Event[userPayload]) error { n++; return nil })); err != nil {
		b.Fatal(err)
	}
	start(b, bus)
	p := userPayload{"u-1", "ada@example.com", "Ada Lovelace"}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if err := bus.Publish(ctx, userCreated.New("u-1", p)); err != nil {
			b.Fatal(err)
		}
	}
}
