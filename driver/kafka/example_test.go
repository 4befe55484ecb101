package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/kafka"
)

func ExampleNew() {
	d, err := kafka.New(kafka.Options{
		Brokers:   []string{"localhost:9092"},
		Namespace: "shop",
	})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close(context.Background())
	fmt.Println(d.BrokerName("identity.user.created"))
	fmt.Println(d.GroupName("billing.create-default-profile"))
	fmt.Println(d.DeadLetterName("identity.user.created", "billing.create-default-profile"))
	// Output:
	// shop.events.identity-user-created
	// shop.billing.create-default-profile
	// shop.events.identity-user-created.billing.create-default-profile.dead
}

func ExampleNew_complaints() {
	_, err := kafka.New(kafka.Options{
		Brokers: []string{"kafka.internal"},
		SASL:    kafka.SASL{Mechanism: "SCRAM", User: "app", Password: "secret"},
	})
	fmt.Println(err)
	// Output:
	// kafka: Options.Brokers: "kafka.internal" is not host:port
	// kafka: Options.SASL.Mechanism "SCRAM": it is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
}

func ExampleDriver_Publish() {
	broker, err := kfake.NewCluster(kfake.NumBrokers(1)) // a broker in this process
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	d, err := kafka.New(kafka.Options{Brokers: broker.ListenAddrs()})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	err = d.Publish(ctx, []driver.Message{
		{Channel: "identity.user.created", Key: "user-1", ID: "1", Body: []byte(`{"userId":"user-1"}`)},
		{Channel: "identity.user.created", Key: "user-2", ID: "2", Body: []byte(`{"userId":"user-2"}`)},
	})
	fmt.Println("stored:", err == nil)

	err = d.Publish(ctx, []driver.Message{{Channel: "identity.user.created", Key: "user-3", ID: "3", Body: make([]byte, 2_000_000)}})
	fmt.Println("too large:", errors.Is(err, driver.ErrTooLarge))
	// Output:
	// stored: true
	// too large: true
}
