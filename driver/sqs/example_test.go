package sqs_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	amazon "github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/sqs"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

func ExampleNew() {
	client := amazon.New(amazon.Options{Region: "eu-central-1"}) // or amazon.NewFromConfig
	d, err := sqs.New(sqs.Options{Client: client, FIFO: true, Namespace: "shop"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close(context.Background())
	fmt.Println(d.BrokerName("identity.user.created"))
	fmt.Println(d.QueueName("identity.user.created", "billing.create-default-profile"))
	// Output:
	// shop-events-identity-user-created.fifo
	// shop-events-identity-user-created-billing-create-default-profile.fifo
}

// A test of yours needs no AWS: sqstest is a server in the process.
func TestExampleOfATest(t *testing.T) {
	server := sqstest.Start(t)
	client := amazon.New(amazon.Options{
		BaseEndpoint: aws.String(server.URL()), Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	})
	d, err := sqs.New(sqs.Options{Client: client, FIFO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close(context.Background())
	err = d.Publish(t.Context(), []driver.Message{{Channel: "identity.user.created", Type: "identity.user.created", Key: "user-1", ID: "1", Body: []byte(`{"userId":"user-1"}`)}})
	if err != nil || server.Calls("SendMessageBatch") != 1 {
		t.Errorf("Publish: %v, %d requests", err, server.Calls("SendMessageBatch"))
	}
}
