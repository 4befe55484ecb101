package kafka

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// benchBrokers is the real broker where there is one, else one in the process.
func benchBrokers(b *testing.B) []string {
	if value := os.Getenv("KAFKA_BROKERS"); value != "" {
		return strings.Split(value, ",")
	}
	return newCluster(b).ListenAddrs()
}

const benchBody = `{"aggregateId":"user-000001","eventType":"identity.user.created","occurredAt":"2026-01-02T15:04:05.000Z","version":1}`

func benchMessages(channel string, count, keys int) []driver.Message {
	messages := make([]driver.Message, count)
	for n := range messages {
		messages[n] = driver.Message{Channel: channel, Key: fmt.Sprintf("user-%06d", n%keys), ID: "id", Body: []byte(benchBody), Headers: driver.Headers{
			{Name: driver.HeaderEventType, Value: "identity.user.created"},
			{Name: driver.HeaderTimestamp, Value: "2026-01-02T15:04:05.000Z"},
			{Name: driver.HeaderEventID, Value: "0198c5a4-1111-7222-8333-944444444444"},
		}}
	}
	return messages
}

func benchRecords(d *Driver, messages []driver.Message) []*kgo.Record {
	records := make([]*kgo.Record, len(messages))
	for n, m := range messages {
		r := &kgo.Record{Topic: d.BrokerName(m.Channel), Key: []byte(m.Key), Value: m.Body}
		for _, h := range m.Headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
		}
		records[n] = r
	}
	return records
}

// BenchmarkPublish compares Publish with ProduceSync of the same messages.
func BenchmarkPublish(b *testing.B) {
	addresses := benchBrokers(b)
	channel := fmt.Sprintf("bench.publish.n%d", time.Now().UnixNano())
	d := newDriver(b, addresses)
	messages := benchMessages(channel, 100, 100)
	publish(b, d, messages...)
	rate := func(b *testing.B, each int) {
		b.ReportMetric(float64(each)*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	}
	b.Run("raw/100", func(b *testing.B) {
		raw := client(b, addresses, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0))
		b.ReportAllocs()
		for b.Loop() {
			if err := raw.ProduceSync(b.Context(), benchRecords(d, messages)...).FirstErr(); err != nil {
				b.Fatal(err)
			}
		}
		rate(b, 100)
	})
	b.Run("driver/100", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := d.Publish(b.Context(), messages); err != nil {
				b.Fatal(err)
			}
		}
		rate(b, 100)
	})
	b.Run("driver/100 of one key", func(b *testing.B) {
		same := benchMessages(channel, 100, 1)
		for b.Loop() {
			if err := d.Publish(b.Context(), same); err != nil {
				b.Fatal(err)
			}
		}
		rate(b, 100)
	})
	b.Run("raw/64 callers", func(b *testing.B) {
		raw := client(b, addresses, kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0))
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for n := 0; p.Next(); n++ {
				if err := raw.ProduceSync(b.Context(), benchRecords(d, messages[n%100:n%100+1])...).FirstErr(); err != nil {
					b.Error(err)
					return
				}
			}
		})
		rate(b, 1)
	})
	b.Run("driver/64 callers", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for n := 0; p.Next(); n++ {
				if err := d.Publish(b.Context(), messages[n%100:n%100+1]); err != nil {
					b.Error(err)
					return
				}
			}
		})
		rate(b, 1)
	})
}

// BenchmarkBacklog compares reading and settling a backlog with polling it in a
// group without any commit.
func BenchmarkBacklog(b *testing.B) {
	const backlog = 300_000
	addresses := benchBrokers(b)
	channel := fmt.Sprintf("bench.backlog.n%d", time.Now().UnixNano())
	d := newDriver(b, addresses)
	publish(b, d, benchMessages(channel, 1, 1)...)
	fill := client(b, addresses, kgo.MaxBufferedRecords(100_000))
	messages := benchMessages(channel, 1000, 1000)
	for range backlog / 1000 {
		for _, r := range benchRecords(d, messages) {
			fill.Produce(context.Background(), r, nil)
		}
	}
	if err := fill.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Run("raw", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			raw, err := kgo.NewClient(kgo.SeedBrokers(addresses...), kgo.ConsumerGroup(fmt.Sprint("raw", time.Now().UnixNano())),
				kgo.ConsumeTopics(d.BrokerName(channel)), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			for got := 0; got < backlog; {
				got += raw.PollFetches(b.Context()).NumRecords()
			}
			b.StopTimer()
			raw.Close()
			b.StartTimer()
		}
		b.ReportMetric(float64(backlog)*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("driver", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s := &counter{done: make(chan struct{}), want: backlog, settle: make(chan []driver.Settlement, 10_000)}
			c, err := d.Subscribe(b.Context(), subscription(fmt.Sprintf("bench.n%d", time.Now().UnixNano()), channel), s)
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error, 2)
			b.StartTimer()
			go func() { ended <- c.Run(ctx) }()
			go func() { ended <- s.settleAll(c) }()
			<-s.done
			b.StopTimer()
			cancel()
			for range 2 {
				if err := <-ended; err != nil {
					b.Fatal(err)
				}
			}
			if err := c.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(backlog)*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
}

// counter settles everything in batches, as an engine with free handlers.
type counter struct {
	drivertest.Sink
	want   int
	done   chan struct{}
	settle chan []driver.Settlement
}

func (c *counter) Joined() {}

func (c *counter) Deliver(_ context.Context, deliveries []driver.Delivery) {
	c.settle <- drivertest.Finished(deliveries...)
}

func (c *counter) settleAll(consumer driver.Consumer) error {
	for got := 0; got < c.want; {
		batch := <-c.settle
		for more := true; more; {
			select {
			case next := <-c.settle:
				batch = append(batch, next...)
			default:
				more = false
			}
		}
		if err := consumer.Settle(context.Background(), batch); err != nil {
			return err
		}
		got += len(batch)
	}
	close(c.done)
	return nil
}
