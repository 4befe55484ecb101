package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
)

type goodPayload struct {
	N int `json:"n"`
}

var goodHappened = tidings.Define[goodPayload]("peers.good.happened", 1, tidings.Repeatable)

// A record that nobody can read costs its partition nothing: it is a dead letter
// with its bytes, and what comes after it is handled. See docs/peer-defects.md.
func TestPeerDefect11AnUndecodableRecordStopsNothing(t *testing.T) {
	t.Run("in process", func(t *testing.T) { undecodableRecord(t, newCluster(t).ListenAddrs(), single) })
	t.Run("real", func(t *testing.T) {
		d, _ := onReal(t)
		undecodableRecord(t, brokers(t, "KAFKA_BROKERS"), single, func(o *Options) { o.Namespace = d.options.Namespace })
	})
}

func undecodableRecord(t *testing.T, addresses []string, change ...func(*Options)) {
	d := newDriver(t, addresses, change...)
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	var mu sync.Mutex
	var handled []int
	b.Module("peers").Subscribe("watch", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning}, goodHappened.On(func(_ context.Context, e tidings.Event[goodPayload]) error {
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, e.Payload().N)
		return nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	if err := b.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	raw := client(t, addresses, kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck()))
	good := func(n int) {
		if err := b.Publish(ctx, goodHappened.New("a", goodPayload{n})); err != nil {
			t.Fatal(err)
		}
	}
	good(1)
	if err := raw.ProduceSync(ctx, &kgo.Record{Topic: d.BrokerName(goodHappened.Channel()), Key: []byte("a"), Value: []byte("\x00 bad")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	good(2)
	drivertest.Eventually(t, "both good ones", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(handled) == "[1 2]"
	})
	reader := client(t, addresses, kgo.ConsumeTopics(d.DeadLetterName(goodHappened.Channel(), "peers.watch")), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	wait, cancelWait := context.WithTimeout(ctx, patience)
	defer cancelWait()
	letters := reader.PollRecords(wait, 1).Records()
	if len(letters) != 1 || string(letters[0].Value) != "\x00 bad" {
		t.Errorf("dead letters %+v", letters)
	}
}
