package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/outbox"
)

func TestWhatIsCommittedIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		b, box, _ := running(t, d, s, outbox.Options{})
		users, open := b.Module("users"), &tx{}
		one, two := created.New("u1", payload{"Ada"}), created.New("u1", payload{"Ada L."})
		if err := users.Through(box.In(open)).Publish(t.Context(), one, two); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		if len(d.ids()) != 0 {
			t.Fatalf("sent before the commit: %v", d.ids())
		}
		s.commit(open)
		synctest.Wait()
		if got := d.ids(); fmt.Sprint(got) != fmt.Sprint([]string{one.ID(), two.ID()}) {
			t.Fatalf("sent %v", got)
		}
		delivery := driver.Delivery{Message: d.took[0]}
		if e, err := codec.Decode(&delivery); err != nil || e.Type != "users.user.created" || e.AggregateID != "u1" || e.ID != one.ID() || string(e.Payload) != `{"name":"Ada"}` {
			t.Errorf("%+v %v", e, err)
		}
		if status, err := box.Status(t.Context()); err != nil || status.Backlog != 0 || status.Rate == 0 {
			t.Errorf("status %+v: %v", status, err)
		}
	})
}

func TestWhatAModuleMayNotPutIsRefused(t *testing.T) {
	d, s := newBroker(), newTable()
	b := bus(d, tidings.Options{RequireOutbox: true})
	box, err := outbox.New(b, s, &outbox.Options{WithoutRelay: true})
	if err != nil {
		t.Fatal(err)
	}
	users, open := b.Module("users"), &tx{}
	event := created.New("u1", payload{"Ada"})
	if err := users.Through(box.In(open)).Publish(t.Context(), event, foreign.New("l1", payload{})); !errors.Is(err, tidings.ErrForeignEvent) || len(open.rows) != 0 {
		t.Errorf("an event of another module: %v, %d rows", err, len(open.rows))
	}
	if err := users.Through(box.In(nil)).Publish(t.Context(), event); !errors.Is(err, outbox.ErrNoTransaction) {
		t.Errorf("without a transaction: %v", err)
	}
	s.commit(open)
	if err := users.Through(box.In(open)).Publish(t.Context(), event); err == nil {
		t.Error("in a transaction that is over: no error")
	}
	if err := users.Publish(t.Context(), event); !errors.Is(err, tidings.ErrOutboxRequired) || len(d.ids()) != 0 {
		t.Errorf("beside the outbox: %v", err)
	}
	if err := box.Serialize(t.Context(), nil, "users.user.created", "u1"); !errors.Is(err, outbox.ErrNoTransaction) {
		t.Errorf("Serialize without a transaction: %v", err)
	}
	if _, err := outbox.New(bus(memory.New(nil), tidings.Options{}), s, nil); err == nil || !strings.Contains(err.Error(), "sqlite") {
		t.Errorf("over the in-memory driver: %v", err)
	}
	_, err = outbox.New[*tx](nil, nil, &outbox.Options{Workers: 65, Batch: -1, LeaseTime: 1, PollInterval: -1})
	for _, want := range []string{"bus", "store", "Workers", "Batch", "LeaseTime", "PollInterval"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no complaint about %s: %v", want, err)
		}
	}
}
