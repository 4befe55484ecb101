package streams_test

import (
	"context"
	"fmt"
	"log"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis/streams"
)

func ExampleDriver_Publish() {
	server, err := miniredis.Run() // a server in this process
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	d, err := streams.New(streams.Options{Client: rueidis.ClientOption{InitAddress: []string{server.Addr()}}, Namespace: "shop"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close(context.Background())
	err = d.Publish(context.Background(), []driver.Message{
		{Channel: "identity.user.created", Key: "user-1", ID: "1", Body: []byte(`{"userId":"user-1"}`)},
		{Channel: "identity.user.created", Key: "user-2", ID: "2", Body: []byte(`{"userId":"user-2"}`)},
	})
	fmt.Println("stored:", err == nil)
	fmt.Println(d.BrokerName("identity.user.created"), "and a shard's number")
	// Output:
	// stored: true
	// shop:events:identity.user.created and a shard's number
}
